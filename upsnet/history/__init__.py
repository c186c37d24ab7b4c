"""What a training run leaves behind, read without PyTorch: run.py reads its folder, observed.py and evaluation.py are
what an evaluation keeps, curves.py draws, advice.py says what is wrong, page.py writes training.html; compare.py,
compare_page.py and command.py are `upsnet runs compare`.
"""
