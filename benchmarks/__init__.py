"""Speed and memory of each stage, beside the alternative or the limit measured in the same run.

python -m benchmarks [--only STAGE ...] [--json FILE] [--plot FILE]
"""
