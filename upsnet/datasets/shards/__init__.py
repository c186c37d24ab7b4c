"""Data sets in shards: a few tars in place of many files. write.py makes them, index.py says where in them each photo
and PNG lies, command.py is `upsnet data shards`. ../places.py opens photos and PNGs, of folders and of shards alike.
"""
