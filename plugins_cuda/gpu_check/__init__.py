"""Builds the operators for this machine's NVIDIA GPU, checks them there and measures them: `make gpu-check`.

steps.py has the steps in their order, sanitizers.py what compute-sanitizer is asked and says, process.py runs a step's
commands and ends them in time; __main__.py is the command line. docs/gpu.md says what comes out.
"""
