"""What users may type: the options of every command as data classes, which tyro parses.

Nothing is decided here; the packages above turn options into what they need, once. Importing an option class imports
neither PyTorch nor anything else that takes long, so that ``--help`` and mistakes on the command line answer at once.
"""
