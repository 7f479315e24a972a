"""The log: who writes to it, what is kept out of it, and where it is kept. Standard `logging`; no torch, no Qt.

Modules write with `logging.getLogger(__name__)`. Nothing is installed until a `Trail` starts, so that a program that
uses the engine as a library keeps its own logging. Levels: INFO is what happened, WARNING what a user should know, and
an ERROR with a traceback is a defect of ours.
"""
