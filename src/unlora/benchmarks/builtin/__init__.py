"""The built-in benchmarks, which generate their data and train their models: persona, miniatures of MUSE and WMDP."""
