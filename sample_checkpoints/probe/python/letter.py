from pathlib import Path
from string import Template

LETTER = Template(
    "Dear $name,\n\n"
    "your gauge reported $total mm of rain in $month, which is $share % of\n"
    "the usual amount. Please clean the funnel before you return the form.\n"
)


def write_letter(name: str, total: float, usual: float, month: str) -> str:
    """Fill the template; a month without a usual amount is left out."""
    if usual <= 0:
        raise ValueError(f"the usual amount for {month} is {usual}, not positive")
    share = round(100 * total / usual)
    return LETTER.substitute(name=name, total=total, month=month, share=share)


def post(letters: dict[str, str]) -> None:
    for name, text in letters.items():
        # One file a reader; the name was checked when the gauge was registered.
        Path(f"{name}.txt").write_text(text, encoding="utf-8")
