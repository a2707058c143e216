"""`moco-det quickstart`: data, encoders, their conversion, a matrix of runs, the report.

Pre-training and the runs are processes of their own, started by the commands a user would type.
"""
