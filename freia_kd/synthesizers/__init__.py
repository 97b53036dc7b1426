"""Methods that make a teacher's inputs without its data, by name."""

from ..registry import Registry

SYNTHESIZERS = Registry(
    "freia_kd.synthesizers",
    {
        "bdnf": "freia_kd.synthesizers.bdnf:BDNF",
        "noise": "freia_kd.synthesizers.noise:Noise",
    },
    "synthesizer",
)
