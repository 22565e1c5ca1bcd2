"""From a request's body to the bytes of one or more files, with a limit on every size and number.

Three kinds of body are read: the file itself (`image/*`, `application/octet-stream` or no
Content-Type at all), `multipart/form-data` with parts named `file`, and JSON
`{"images": ["<base64>", ...]}`. A body is held in memory and never written to disk; no more of it
is read than the limits allow. Nothing here knows images or query parameters.
"""
