"""The standard library's own test suites, run unmodified against scaleout.

::

    python -m compat_tests                            # all suites of this Python; rewrites docs/compatibility.md
    python -m compat_tests --suite multiprocessing -k test_imap
    python3.11 -m compat_tests --json 311.json        # one run per Python ...
    python3.13 -m compat_tests --json 313.json
    python -m compat_tests --nodes 2 --json nodes.json  # with the workers on the nodes of a cluster
    python -m compat_tests report 311.json 313.json   # ... and one table
    python -m compat_tests --sabotage                 # what passes although our class always fails?
    python -m compat_tests surface                    # names that upstream uses and scaleout lacks
    pytest compat_tests/selfcheck.py                  # the harness itself

The exit status is 1 on a regression: a counted test that does not pass (a skip is no pass), an excluded test that is
gone or whose ``fails:`` no longer holds, a process or thread left behind. It is 2 if a suite could not be run.

The data flow: ``cli`` asks ``supervise`` to run each suite of ``suites``; that starts one ``runner`` process per test
class, which loads a module of ``upstream``, whose imports ``redirect`` turns to scaleout, while ``evidence`` notes
which classes are really constructed. ``report`` prints and merges the results.
"""
