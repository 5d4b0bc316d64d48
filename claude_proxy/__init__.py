"""A proxy that lets Claude Code and other Claude clients use other upstreams."""
