"""`upsnet data split`: training and validation images of one data set, without the same picture on both sides."""
