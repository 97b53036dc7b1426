"""The main job as a library: a smaller classifier from `lenet5.pt`, which `make demo` trains.

Run it in the folder of the checkpoint.
"""

import torch

import freia_kd
from freia_kd import BDNF, BDNFOptions, DistillationOptions

result = freia_kd.distill(
    "lenet5.pt",
    students=["3"],
    synthesizer=[BDNF(BDNFOptions(steps=300, batch_size=64)), "spectral"],
    training=DistillationOptions(steps=600),
    preset="quick",
    out="runs/library",
)
print(result.report.students[0].distilled.agreement)  # with the teacher, on synthetic inputs

student = result.student()  # or load_student("runs/library/student.pt"), without teacher or run
with torch.no_grad():
    logits = student(torch.rand(8, 1, 32, 32))  # pixels in [0, 1]; it normalises them itself
print(logits.argmax(1))
