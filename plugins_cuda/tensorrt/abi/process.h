// What TensorRT has once in a process: the registry of plugins and the loggers. TensorRT makes the objects, a plugin
// library calls them.
//
// TensorRT 11 changed all three: the registry lost its functions for plugins of the second generation, and the loggers
// became versioned interfaces. So each class stands here twice: v10 for TensorRT 10.9 to 10.x, v11 for 11.x and
// TensorRT-RTX 1.7. The version of the library that an object is from chooses. A function that nobody calls has its
// place in the table, and no types that are used for nothing else.
#pragma once

#include <cstdint>

#include "tensorrt/abi/plugin.h"

namespace upsnet::tensorrt {

enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };

namespace v10 {

class ILogger {
 public:
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

class ILoggerFinder {
 public:
  virtual ILogger* findLogger() = 0;  // that of the engine or builder which runs on this thread

 protected:
  virtual ~ILoggerFinder() = default;
};

// Twice there are two functions of one name: the first is for creators of the second generation.
class IPluginRegistry {
 public:
  virtual bool registerCreatorV2(void* creator, const char* space) noexcept = 0;
  virtual void* const* getPluginCreatorList(int32_t* count) const noexcept = 0;
  virtual void* getPluginCreator(const char* name, const char* version, const char* space) noexcept = 0;

 protected:
  virtual ~IPluginRegistry() noexcept = default;

 public:
  virtual void setErrorRecorder(void* recorder) noexcept = 0;
  virtual void* getErrorRecorder() const noexcept = 0;
  virtual bool deregisterCreatorV2(const void* creator) noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool enabled) = 0;
  virtual void* loadLibrary(const char* path) noexcept = 0;
  virtual void deregisterLibrary(void* handle) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, const char* space) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version,
                                                        const char* space) noexcept = 0;
  virtual bool deregisterCreator(const nvinfer1::IPluginCreatorInterface& creator) noexcept = 0;
  virtual void* acquirePluginResource(const char* key, void* resource) noexcept = 0;
  virtual int32_t releasePluginResource(const char* key) noexcept = 0;
  // Since 10.13 another one: getAllCreatorsRecursive.
};

}  // namespace v10

namespace v11 {

class ILogger : public nvinfer1::IVersionedInterface {
 public:
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

class ILoggerFinder : public nvinfer1::IVersionedInterface {
 public:
  nvinfer1::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  virtual ILogger* findLogger() = 0;
};

class IPluginRegistry {
 protected:
  virtual ~IPluginRegistry() noexcept = default;

 public:
  virtual void setErrorRecorder(void* recorder) noexcept = 0;
  virtual void* getErrorRecorder() const noexcept = 0;
  virtual bool isParentSearchEnabled() const = 0;
  virtual void setParentSearchEnabled(bool enabled) = 0;
  virtual void* loadLibrary(const char* path) noexcept = 0;
  virtual void deregisterLibrary(void* handle) noexcept = 0;
  virtual bool registerCreator(nvinfer1::IPluginCreatorInterface& creator, const char* space) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreators(int32_t* count) const noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* getCreator(const char* name, const char* version,
                                                        const char* space) noexcept = 0;
  virtual bool deregisterCreator(const nvinfer1::IPluginCreatorInterface& creator) noexcept = 0;
  virtual void* acquirePluginResource(const char* key, void* resource) noexcept = 0;
  virtual int32_t releasePluginResource(const char* key) noexcept = 0;
  virtual nvinfer1::IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* count) noexcept = 0;
};

}  // namespace v11

}  // namespace upsnet::tensorrt
