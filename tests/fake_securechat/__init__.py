"""A fake of REDCap with its SecureChatAI module, susom/secureChatAI at commit 6992d40.

    request --server (HTTP, REDCap, faults)--> module (the PHP's logic) --text (PHP's habits)--> reply

Behind the module stands a scripted vendor of models. `python3 -m tests.fake_securechat` runs it.
"""
