"""A fake of REDCap with the SecureChatAI module, as susom/secureChatAI is at 6992d40."""
