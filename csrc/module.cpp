// A Python module that holds the name of the instruction set in use; importing it loads this object, whose static
// registrars add the kernels to torch.
#include <Python.h>

#include <exception>

#include "../kernels/simd.h"

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  try {
    const char* name = ser_fast::isa_name();
    PyObject* module = PyModule_Create(&definition);
    if (module && PyModule_AddStringConstant(module, "cpu", name) == 0) return module;
    Py_XDECREF(module);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
  return nullptr;
}
