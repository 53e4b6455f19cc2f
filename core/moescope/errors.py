"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Bad input, told in one sentence that says what is wrong and why.

    The command line prints it on stderr and exits with 2; the server answers 4xx with it; the page shows it as it is.
    """
