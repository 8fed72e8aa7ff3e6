"""A teacher writes rationales, and labels where none are given: asked once, kept for ever, filtered each time anew.

prompt.py asks, reading.py reads, selection.py votes and filters, answers.py keeps, stage.py runs it all on Ray Data.
What is kept are the teacher's plain answers, so that other marks, votes or filters cost nothing.
"""
