"""`upsnet data shards`: command.py, and write.py, which makes the tars. ../shard_index.py says where in them each photo
and PNG lies, ../places.py opens them, of folders and of shards alike.
"""
