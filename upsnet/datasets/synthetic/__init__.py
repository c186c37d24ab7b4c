"""What synthetic scenes are made of: draws.py (randomness), settings.py (classes and counts), stuff.py, things.py and
canvas.py (where things lie). ../scene.py puts them together.
"""
