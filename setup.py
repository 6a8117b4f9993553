from setuptools import setup

setup(
    packages=["policy_split", "policy_split_kernels"],
    package_dir={"policy_split_kernels": "kernels", "policy_split": "policy_split"},
)
