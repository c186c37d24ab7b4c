"""`upsnet data show`: one HTML page about data sets. survey.py counts and chooses the images, histogram.py bins,
picture.py draws, page.py puts all into templates/show.html.
"""
