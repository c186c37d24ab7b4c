"""How fast the operators are, beside what the machine allows and beside other implementations: `make bench-ops`.

inputs.py makes realistic inputs, cases.py says what runs on them and what the least work is, ceilings.py measures the
machine, timing.py the calls, memory.py the peak memory; __main__.py is the command line.
"""
