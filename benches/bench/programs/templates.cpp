// A translation unit that keeps a C++ compiler busy: the standard library's containers, and templates of our own.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <variant>
#include <vector>

template <int N> struct Tower { Tower<N - 1> below; std::tuple<int, char, std::string> floor; };
template <> struct Tower<0> {};

template <int N> std::map<int, std::vector<std::variant<int, std::string, Tower<N % 20>>>> storey() { return {}; }

template <int... N> std::size_t street(std::integer_sequence<int, N...>) { return (storey<N>().size() + ...); }

int main(int argc, char **argv) {
    std::unordered_map<std::string, std::function<bool(const std::string &)>> rules;
    rules["word"] = [](const std::string &s) { return std::regex_match(s, std::regex("\\w+")); };
    std::vector<std::unique_ptr<std::string>> words;
    for (int i = 0; i < argc; ++i) words.push_back(std::make_unique<std::string>(argv[i]));
    std::sort(words.begin(), words.end(), [](auto &a, auto &b) { return *a < *b; });
    return static_cast<int>(street(std::make_integer_sequence<int, 24>()) + rules.size() + words.size());
}
