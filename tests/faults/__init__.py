"""Fault tests, one module for each kind of fault: a test breaks something real, then checks ledger, files and MLflow.

python -m pytest -m faults          # all fault tests
python -m pytest                    # the fault tests that take less than 20 s, with all other tests
"""
