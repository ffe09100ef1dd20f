"""One run from end to end.

run       load, choose the edits, edit and judge by a protocol, write the result files
inputs    what a run reads before it starts: options, the gate's verdict, what the model knows, which edits it makes
streams   what its protocol is given
searches  one search of target vectors for all runs that need the same
"""
