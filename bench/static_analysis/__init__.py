"""What the compiler made of the Triton kernels, counted without a GPU, and the times that follow from the counts.

`cases` are the operators at AlexNet's shapes, `launches` records the launches that they make, `compilation` compiles
those, `intermediate` and `sass` read the compiled code, `prediction` models an H100, `rows` puts the figures of a
launch together, `recorded` finds recorded times, `tables` prints and `budget` compares with an earlier record.
"""
