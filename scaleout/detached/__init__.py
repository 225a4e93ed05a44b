"""Detached actors of a cluster: they outlive the program that made them, and other programs find them by name.

    program --calls--> envoy, an actor of the program --TLS--> steward, at the head --calls--> hosted, the actor

Whoever owns an actor keeps its calls and its policy; a program that ends takes what it owns with it. So detached actors
have an owner of their own: the *steward*, a program like any other but that it runs beside the head and owns nothing
else. Each program speaks to it by an *envoy*, an actor of its own: what is passed to a call, and what comes of it, are
objects of the program's as with any other actor, wherever the program uses the handle.

Values cross between programs by value, with the definitions of what is no installed module's (`values`); the steward
never looks inside. Without a cluster there is no other program: a detached actor is then one that its name holds.
"""
