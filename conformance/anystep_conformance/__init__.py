"""The conformance suite: one list of array libraries, one list of subjects, one way to compare.

Agreement between libraries does not show that a formula is right, since all of them run the same source; the tests of
order, identities and references do that.
"""
