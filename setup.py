"""Only what pyproject.toml cannot say: the cffi extension, and one wheel for every CPython from 3.11."""

from setuptools import setup

setup(
    cffi_modules=["uringloop/core/build.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
