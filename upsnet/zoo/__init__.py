"""Networks that others have trained and published: what there is, and how a file of theirs comes here."""
