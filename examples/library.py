"""The main job as a library: a smaller classifier from `lenet5.pt`, which `make demo` trains.

The same as in the README; run it in the folder of the checkpoint.
"""

import torch

import freia_kd

report = freia_kd.distill("lenet5.pt", students=["3"], preset="quick", out="runs/library")
print(report.students[0]["agreement"], report.remarks())

student = freia_kd.load_student("runs/library/student.pt")  # needs neither teacher nor run
with torch.no_grad():
    logits = student(torch.rand(8, 1, 32, 32))  # pixels in [0, 1]; it normalises them itself
print(logits.argmax(1))
