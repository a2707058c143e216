"""Which encoder sees which view, and what is learned from: the methods of pre-training.

`base.Method` says what the training loop may ask of one; a method's keys stand at the top of its
file; pretrain/build.py makes one from the config.
"""
