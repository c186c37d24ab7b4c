"""`upsnet viewer`: a page in the browser that shows what models say about photos, and where they differ.

models.py asks them, album.py keeps the last photos, app.py is the server, static/ the page. No PyTorch.
"""
