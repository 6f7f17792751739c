"""Files of published data sets, told by their hashes: a download that was cut short gives other results."""

from __future__ import annotations

from pathlib import Path

# SHA-256 of the files of MatBench v0.1 that hold structures, as matminer's list of its data sets has them.
SHA256 = {
    "matbench_dielectric.json.gz": "83befa09bc2ec2f4b6143afc413157827a90e5e2e42c1eb507ccfa01bf26a1d6",
    "matbench_jdft2d.json.gz": "26057dc4524e193e32abffb296ce819b58b6e11d1278cae329a2f97817a4eddf",
    "matbench_log_gvrh.json.gz": "098af941f4c663270f1fe21abf20ffad6fb85ecbfcba5786ceac03983ac29da7",
    "matbench_log_kvrh.json.gz": "44b113ddb7e23aa18731a62c74afa7e5aa654199e0db5f951c8248a00955c9cd",
    "matbench_mp_e_form.json.gz": "dedcb1d4ba2e3e50dbdd45ba5bc647a00e9c2bcf8f8bf556dc8e92caa39eb21f",
    "matbench_mp_gap.json.gz": "58b65746bd88329986ed66031a2ac1369c7c522f7bc9f9081528e07097c2c057",
    "matbench_mp_is_metal.json.gz": "9a028ed5750a4c76ca36e9f3c8d48fe0bf3fb21b76ec2289e58ae7048d527919",
    "matbench_perovskites.json.gz": "4641e2417f8ec8b50096d2230864468dfa08278dc9d257c327f65d0305278483",
    "matbench_phonons.json.gz": "4db551f21ec5f577e6202725f10e34dfc509aa7df3a6bdaac497da7f6dbbb9b3",
}


def doubt(path: Path, sha256: str) -> str | None:
    """A line if a file has the name of a published one and another content.

    Args:
        sha256: of the file.
    """
    if SHA256.get(path.name, sha256) == sha256:
        return None
    return (
        f"{path}: is not the file of that name that was published (its hash differs); get it anew, or give a file of "
        "your own another name"
    )
