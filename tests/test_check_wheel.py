"""How tools/check_wheel.py reads what nm and ldd print."""

import importlib.util
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "tools" / "check_wheel.py"
spec = importlib.util.spec_from_file_location("check_wheel", PROGRAM)
assert spec and spec.loader
check_wheel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_wheel)

LDD = """
	linux-vdso.so.1 (0x00007ffc)
	libtorch_cpu.so => not found
	libstdc++.so.6 => /lib/x86_64-linux-gnu/libstdc++.so.6 (0x00007f1d)
	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)
	/lib64/ld-linux-x86-64.so.2 (0x00007f1e)
"""
NM = """
                 w __gmon_start__
                 U _ZNSt6localeC1Ev@GLIBCXX_3.4.26
                 U aoti_torch_get_dim
                 U torch_call_dispatcher
                 U memcpy@GLIBC_2.14
                 U log@GLIBC_2.29
"""


def test_the_libraries_that_are_always_there_are_not_foreign():
    assert check_wheel.foreign_libraries(LDD.strip()) == []


def test_python_and_libtorchs_cpp_library_are_foreign():
    listing = LDD.strip() + "\n\tlibpython3.11.so.1.0 => not found\n\tlibc10.so => not found"
    foreign = check_wheel.foreign_libraries(listing)
    assert foreign == ["libpython3.11.so.1.0", "libc10.so"]


def test_only_the_stable_abi_and_versioned_symbols_are_not_foreign():
    assert check_wheel.foreign_symbols(NM.strip()) == []
    listing = NM.strip() + "\n U _ZN2at4_ops4call\n U PyList_New\n U _ZN5torch8function"
    foreign = check_wheel.foreign_symbols(listing)
    assert foreign == ["_ZN2at4_ops4call", "PyList_New", "_ZN5torch8function"]


def test_versions_compare_as_numbers():
    assert check_wheel.newest_versions(NM) == "GLIBC 2.29, GLIBCXX 3.4.26"
