"""A client of a server that runs UPSNet: `upsnet.Client`, and `upsnet.AsyncClient` for asyncio. No PyTorch.

conversation.py has what is said, client.py and async_client.py how it gets there.
"""
