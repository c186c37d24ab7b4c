"""What every stage shares: photos, sizes, categories, results and files. numpy, Pillow and pydantic only."""
