"""Is a candidate as good as the baseline? `chatterbox-vllm evaluate`, and a monitor for long-lived processes.

plan.py says what is spoken, collect.py runs one model in a process of its own and writes down what it does, compare.py
measures two such collections against each other (metrics.py), gates.py judges, report.py tells, page.py shows
(plots.py).
"""
