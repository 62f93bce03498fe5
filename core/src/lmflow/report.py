"""placeholder until the report is written"""
from pathlib import Path
def write_report(directory: Path) -> Path:
    return directory
