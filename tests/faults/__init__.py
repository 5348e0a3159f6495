"""What nights bring, one module a kind: each test breaks something real and looks at what the ledger, the files and
MLflow hold afterwards.

    python -m pytest -m faults          # all of them
    python -m pytest                    # those under 20 s, with everything else
"""
