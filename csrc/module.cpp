// A Python module that holds the name of the instruction set in use and sets the rules that a measurement may change;
// importing it loads this object, whose static registrars add the kernels to torch.
#include <Python.h>

#include <exception>

#include "../kernels/gru.h"
#include "../kernels/parallel.h"
#include "../kernels/power_spectrogram.h"
#include "../kernels/simd.h"

namespace {

PyObject* set_rules(PyObject*, PyObject* args) {
  double share;
  long long frames;
  if (!PyArg_ParseTuple(args, "dL", &share, &frames)) return nullptr;
  if (!(share > 0) || frames < 1) {
    PyErr_SetString(PyExc_ValueError, "nanoseconds per thread and frames per task must be positive");
    return nullptr;
  }
  ser_fast::Parallel::share = share;
  ser_fast::frames_per_task = frames;
  Py_RETURN_NONE;
}

PyObject* set_spared(PyObject*, PyObject* args) {
  int multiprocessors;
  if (!PyArg_ParseTuple(args, "i", &multiprocessors)) return nullptr;
  ser_fast::gru_spare(multiprocessors);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"set_rules", set_rules, METH_VARARGS, "set_rules(nanoseconds of work per thread, frames per task)"},
    {"set_spared", set_spared, METH_VARARGS, "set_spared(multiprocessors that plans of the GRU leave free)"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};
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
