// A photo of the network's size through an exported model: panoptic MODEL.onnx LIBRARY.so PHOTO.ppm MAP.pgm [SCALE]
// LIBRARY is libupsnet_onnxruntime.so. SCALE: network pixels for one pixel of the original photo; 1.
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

constexpr int64_t kDivisor = 32;  // sides of the network's input are multiples of it

int64_t padded(int64_t side) { return (side + kDivisor - 1) / kDivisor * kDivisor; }

int32_t number(std::istream& file) {  // of a PPM's head, where comments may stand between them
  while ((file >> std::ws).peek() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  int32_t value = 0;
  file >> value;
  return value;
}

float scale_of(const char* text) {
  char* end = nullptr;
  const float scale = std::strtof(text, &end);
  if (*end != '\0' || !std::isfinite(scale) || scale <= 0) {
    throw std::invalid_argument(std::string("SCALE is '") + text + "', not a number above 0");
  }
  return scale;
}

void run(const char* model, const char* library, const char* photo, const char* map, float scale) {
  std::ifstream file(photo, std::ios::binary);
  std::string kind;
  file >> kind;
  const int32_t width = number(file), height = number(file), most = number(file);
  file.get();
  if (kind != "P6" || most != 255 || width < 1 || height < 1) throw std::runtime_error("the photo is no 8-bit PPM");
  const std::array<int64_t, 4> shape{1, padded(height), padded(width), 3};
  std::vector<uint8_t> images(shape[1] * shape[2] * 3);  // zeros right of the photo and below
  for (int32_t y = 0; y < height; ++y) file.read(reinterpret_cast<char*>(&images[y * shape[2] * 3]), 3 * width);
  if (!file) throw std::runtime_error("the photo ends too early");
  std::array<int32_t, 2> sizes{height, width};

  Ort::Env env;
  Ort::SessionOptions options;
  options.RegisterCustomOpsLibrary(library);
  Ort::Session session(env, model, options);
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const std::array<int64_t, 2> sizes_shape{1, 2};
  const std::array<int64_t, 1> scales_shape{1};
  const std::array<Ort::Value, 3> inputs{
      Ort::Value::CreateTensor(memory, images.data(), images.size(), shape.data(), shape.size()),
      Ort::Value::CreateTensor(memory, sizes.data(), sizes.size(), sizes_shape.data(), sizes_shape.size()),
      Ort::Value::CreateTensor(memory, &scale, 1, scales_shape.data(), scales_shape.size())};
  const char* const input_names[] = {"images", "sizes", "scales"};
  const char* const output_names[] = {"panoptic", "segments", "segment_count"};
  const auto outputs = session.Run(Ort::RunOptions(), input_names, inputs.data(), 3, output_names, 3);

  const uint8_t* const panoptic = outputs[0].GetTensorData<uint8_t>();  // 0: void, n: row n - 1 of the segments
  const float* const segments = outputs[1].GetTensorData<float>();      // category, score, area, x1, y1, x2, y2
  const int32_t count = *outputs[2].GetTensorData<int32_t>();
  std::ofstream out(map, std::ios::binary);
  out << "P5\n" << width << " " << height << "\n255\n";
  for (int32_t y = 0; y < height; ++y) out.write(reinterpret_cast<const char*>(panoptic + y * shape[2]), width);
  if (!out.flush()) throw std::runtime_error(std::string(map) + " cannot be written");
  for (const float* row = segments; row < segments + 7 * count; row += 7) {
    std::cout << "category " << row[0] << ", score " << row[1] << ", " << row[2] << " pixels\n";
  }
}

int main(int count, char** arguments) {
  try {
    if (count < 5) throw std::invalid_argument("wanted: MODEL.onnx LIBRARY.so PHOTO.ppm MAP.pgm [SCALE]");
    run(arguments[1], arguments[2], arguments[3], arguments[4], count > 5 ? scale_of(arguments[5]) : 1);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
