"""The three Cloud Run services of the serving side: predict, proxy and promote.

They never import each other; they speak HTTP. What all three need to be a
service at all (the server process, the form of an error) lives here.
"""
