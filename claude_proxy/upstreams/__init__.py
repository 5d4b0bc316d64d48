"""The upstreams: the only modules that talk to the outside."""
