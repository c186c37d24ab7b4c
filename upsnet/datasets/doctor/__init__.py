"""The doctor of data sets: check.py is `upsnet data check`, json_file.py looks at the JSON and image.py at every photo and
PNG. What it can find stands in upsnet/datasets/findings.py."""
