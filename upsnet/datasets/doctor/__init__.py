"""The doctor of data sets: check.py is `upsnet data check`, image.py looks into every photo and PNG, json_file.py finds
data sets, and files that no JSON lists. ../findings.py lists what it knows, ../panoptic_json.py reads the JSON.
"""
