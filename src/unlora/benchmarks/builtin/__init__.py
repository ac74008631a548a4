"""The built-in benchmarks, which make their own data and models: persona, and miniatures of MUSE and WMDP."""
