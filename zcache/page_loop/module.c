/* The module, and the lz4 that it uses. */

#include "page_loop.h"

#include <dlfcn.h>

void *(*lz4_init_stream)(void *, size_t);
int (*lz4_compress)(void *, const char *, char *, int, int, int);
int (*lz4_decompress)(const char *, char *, int, int);

PyDoc_STRVAR(use_lz4_doc, "use_lz4(path) -> the version of the lz4 in a library that is loaded; raises ImportError");

static PyObject *use_lz4(PyObject *module, PyObject *path)
{
    PyObject *name;
    if (!PyUnicode_FSConverter(path, &name))
        return NULL;
    void *library = dlopen(PyBytes_AsString(name), RTLD_NOW | RTLD_NOLOAD);
    Py_DECREF(name);
    if (!library)
        return PyErr_Format(PyExc_ImportError, "%S is not loaded", path);
    int (*version)(void) = (int (*)(void))dlsym(library, "LZ4_versionNumber");
    int (*state_bytes)(void) = (int (*)(void))dlsym(library, "LZ4_sizeofState");
    void *init_stream = dlsym(library, "LZ4_initStream");
    void *compress = dlsym(library, "LZ4_compress_fast_continue"), *decompress = dlsym(library, "LZ4_decompress_safe");
    /* It stays loaded: it is a module of Python's. */
    if (!version || !state_bytes || !init_stream || !compress || !decompress || state_bytes() > LZ4_STREAM_BYTES)
        return PyErr_Format(PyExc_ImportError, "%S does not show its lz4", path);
    lz4_init_stream = (void *(*)(void *, size_t))init_stream;
    lz4_compress = (int (*)(void *, const char *, char *, int, int, int))compress;
    lz4_decompress = (int (*)(const char *, char *, int, int))decompress;
    return PyLong_FromLong(version());
}

static PyMethodDef methods[] = {
    {"use_lz4", use_lz4, METH_O, use_lz4_doc},
    {"decompress", (PyCFunction)(void (*)(void))decompress, METH_FASTCALL,
     "decompress(zpage, out) -> whether it was one of lz4's, of a whole page"},
    {"decode_lz4", (PyCFunction)(void (*)(void))decode_lz4, METH_FASTCALL,
     "decode_lz4(zpages, out) -> whether all were lz4's, each of a whole page"},
    {"held", (PyCFunction)(void (*)(void))held, METH_FASTCALL, "See `PageLoop.held`."},
    {"publish", (PyCFunction)(void (*)(void))publish, METH_FASTCALL, "See `PageLoop.publish`."},
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL,
     "decode(entries, bodies, out) -> the indexes of those that are another codec's, or damaged"},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_compiled", "See compiled.py.", -1, methods,
                                        NULL, NULL, NULL, NULL};

#define VERSION "0.2.0" /* of zcache, which takes no other (a test compares) */

#define CONSTANT(name) {#name, name}
static const struct { const char *name; uint64_t value; } constants[] = {
    CONSTANT(PAGE_BYTES), CONSTANT(MAX_RUN_PAGES), CONSTANT(RAW), CONSTANT(WORD), CONSTANT(LZ4),
    CONSTANT(FRAME_MASK), CONSTANT(OFFSET_SHIFT), CONSTANT(OFFSET_MASK), CONSTANT(LENGTH_SHIFT),
    CONSTANT(LENGTH_MASK), CONSTANT(CODEC_SHIFT), CONSTANT(CODEC_MASK), CONSTANT(ZPAGE), CONSTANT(SAME_FILLED),
    CONSTANT(LOST), CONSTANT(LOG_FRAME_BYTES), CONSTANT(RECORD_BYTES), CONSTANT(SPAN_SHIFT),
};

static int add(PyObject *module, const char *name, PyObject *object)
{
    int failed = object ? PyModule_AddObjectRef(module, name, object) : -1;
    Py_XDECREF(object);
    return failed;
}

PyMODINIT_FUNC PyInit__compiled(void)
{
    PyObject *module = PyModule_Create(&definition), *numbers = PyDict_New();
    int failed = !module || !numbers;

    for (size_t n = 0; !failed && n < sizeof constants / sizeof *constants; n++) {
        PyObject *value = PyLong_FromUnsignedLongLong(constants[n].value);
        failed = !value || PyDict_SetItemString(numbers, constants[n].name, value) < 0;
        Py_XDECREF(value);
    }
    failed = failed || PyModule_AddObjectRef(module, "constants", numbers) < 0
        || PyModule_AddStringConstant(module, "version", VERSION) < 0
        || add(module, "Encoder", PyType_FromSpec(&encoder_spec)) < 0
        || add(module, "Reader", PyType_FromSpec(&reader_spec)) < 0
        || !(head_type = (PyTypeObject *)PyType_FromSpec(&head_spec))
        || add(module, "Appender", PyType_FromSpec(&appender_spec)) < 0;
    Py_XDECREF(numbers);
    if (failed)
        Py_CLEAR(module);
    return module;
}
