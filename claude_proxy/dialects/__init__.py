"""Pure converters between wire languages and Messages."""
