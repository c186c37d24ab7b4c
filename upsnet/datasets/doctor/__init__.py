"""The doctor of data sets: check.py is `upsnet data check`, findings.py lists what it knows, json_file.py and image.py
look into the JSON and into every photo and PNG."""
